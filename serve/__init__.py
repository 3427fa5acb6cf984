"""The Ray Serve application: gateway, predictor, generator, pacer."""
