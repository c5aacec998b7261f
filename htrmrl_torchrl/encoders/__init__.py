"""Encoders map the context of a decision to one vector; `contract` defines their interface."""
