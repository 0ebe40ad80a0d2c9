"""AI judges: an OpenAI-compatible endpoint, or embedded. `judge` says what one must do; `choose` picks it."""
