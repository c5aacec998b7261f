"""From what a decision sees to one vector: the encoders and the contract that each of them keeps."""
