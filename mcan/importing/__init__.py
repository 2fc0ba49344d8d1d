"""Readers of feature files made elsewhere, one module per family, and their way into a store."""
