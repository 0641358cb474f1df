"""What is written for one kind of GPU: arrays in, arrays out."""
