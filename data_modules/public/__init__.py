"""Public training data by name: pairs and ranked groups as their publishers lay them out, in a folder or on the Hub."""
