"""Model servers as processes: started, probed, ended, adopted. Begin with `fleet` and `replica`; `restarts`
has the back-off.
"""
