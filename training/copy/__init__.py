"""Which of two texts is clicked more: learned from tests that showed them at random."""
