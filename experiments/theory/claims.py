"""The list of claims, in the order of the table; adding a check is one line here."""

from experiments.theory import activations, batches, bias, cosine, projection
from experiments.theory.evidence import Claim

CLAIMS = [
    Claim(projection.quadratic, 2),
    Claim(projection.smooth, 3),
    Claim(batches.given_the_batch, 2),
    Claim(batches.helps, 3),
    Claim(batches.hurts, 3),
    Claim(bias.lipschitz_bound, 2),
    Claim(bias.kink, 1),
    Claim(bias.spanning, 2),
    Claim(cosine.one_layer_cosines, 4),
    Claim(cosine.whole_network, 3),
    Claim(cosine.mezo, 1),
    Claim(cosine.lozo, 3),
    Claim(cosine.beta_bounds, 3),
    Claim(activations.leading, 1),
    Claim(activations.edges, 1),
    Claim(activations.power_iteration, 3),
]
