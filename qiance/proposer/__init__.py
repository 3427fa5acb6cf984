"""Strategies as a model of logged ones proposes them: vectors, what they bring, and proposals."""
