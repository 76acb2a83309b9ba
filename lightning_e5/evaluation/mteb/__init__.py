"""The MTEB benchmark."""
