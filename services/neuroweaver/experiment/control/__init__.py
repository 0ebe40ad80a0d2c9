"""What happens by itself: experiments are looked at, stopped, concluded; evaluators are kept fresh."""
