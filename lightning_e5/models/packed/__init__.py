"""Forward passes of Hugging Face encoders without padding: one file per family, the layout and the attention shared."""
