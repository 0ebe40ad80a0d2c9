"""Whether the tuned model is better: perplexity and judged wins."""
