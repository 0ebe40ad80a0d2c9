"""Base models in memory, quantised or not, and text from them."""
