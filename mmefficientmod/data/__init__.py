"""The user's own data: what is wrong with them, before a training learns from them."""
