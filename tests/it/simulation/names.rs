//! Names that collide, by the seed: whoever comes and goes, each exposed name leads to one tool of one server.
