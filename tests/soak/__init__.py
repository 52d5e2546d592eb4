"""Networks of real processes under load, with random deaths; at the end every millisatoshi is accounted for."""
