"""Keys: which machine is at the other end of a link, and who made a bundle. No torch.

``files``       key pairs as files: made, read, and refused if others can read the secret
``authorized``  AuthorizedKeys: public keys, one a line; read again when the file changes
``signing``     signatures of bundles (Ed25519, by PyNaCl)

The commands ``keys`` and ``sign`` call all three. ``offloader.link_keys`` reads the keys of a link
for the edge daemon, devices and edge clients. ``Bundle.load(trust=...)`` calls ``signing``.
"""
