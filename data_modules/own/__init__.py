"""A user's own texts: pairs in tables, folders of documents and BEIR folders, read as pairs to train on and to evaluate with."""
