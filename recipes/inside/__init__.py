"""What `look_inside` is made of."""
