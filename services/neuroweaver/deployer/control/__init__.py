"""What happens by itself. Begin with `reconciler`: a look (`progress`) decides by what was measured
(`recent`, `health`) and notes what is true (`status`). `follower` moves with aliases, `collecting` reads
logs, `housekeeping` cleans up.
"""
