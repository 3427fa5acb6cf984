"""The response model: from a response log of any columns to a calibrated, explained artifact."""
