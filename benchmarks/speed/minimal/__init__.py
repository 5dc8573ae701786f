"""Every method once more, by hand, for one network, as briefly as its mathematics allows: costs are held against it.

One file per method, of the method's name on the command line: ``METHOD`` is the intervention as it is timed, with the
defaults of its source, and ``ByHand`` the same mathematics for :func:`network` without anything of the package.
"""
