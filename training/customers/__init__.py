"""The customer model: from a purchase log to next purchase, churn and value of every customer."""
