"""The library inside other libraries, each of them optional: `jaxnet.interop.flax`."""
