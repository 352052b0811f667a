"""Theory: what kernel regression and finite networks should do, from a spectrum and a target alone."""
