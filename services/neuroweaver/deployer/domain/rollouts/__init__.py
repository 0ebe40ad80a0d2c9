"""How one revision takes over from another, step by step, and what the steps show. Pure.

`transitions` decides the next step; `analysis` says what the numbers show. Begin with `rollout`.
"""
