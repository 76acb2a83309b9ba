"""Peak memory, speed and disk of every stage at two numbers of pairs, and what they say of 270 million."""
