from deployer.kubernetes.conftest import api, backend, fake, settings

__all__ = ("api", "backend", "fake", "settings")
