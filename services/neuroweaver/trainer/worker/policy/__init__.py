"""Policy optimisation: losses as pure functions, rollouts, trainer, stage. Begin with `ppo_losses`."""
