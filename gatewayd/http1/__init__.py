"""HTTP/1.1 without I/O: bytes in, heads and bodies out. No Twisted."""
