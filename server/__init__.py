"""HTTP and command line. The outermost layer: everything else can be used without it."""
