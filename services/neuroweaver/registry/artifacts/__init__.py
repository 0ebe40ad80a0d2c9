"""The files of versions: uploads, downloads, checks of their bytes, a folder or an object store.

Begin with `store`. Imports `domain`.
"""
