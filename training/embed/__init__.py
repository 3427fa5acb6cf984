"""Embeddings of text, images and audio, and review sentiment: batch jobs that write feature tables."""
