"""What nobody asks for: experiments are ramped up, stopped and settled, evaluators kept fresh."""
