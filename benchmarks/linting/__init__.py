"""Texts that judge the lint."""
