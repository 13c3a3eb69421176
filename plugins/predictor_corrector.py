"""predictor_corrector: to be written in this session."""
