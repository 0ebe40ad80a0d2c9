"""The services as processes of this machine, for `neuroweaver up` and the demo."""
