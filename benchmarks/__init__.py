"""Side-by-side measurements of gatewayd and its peers; README.rst says how."""
