"""The table of methods.

In the summaries, D_i = s_i B_i A_i is the update of adapter i in one module, s_i its scale, w_i the weight given by the
user, c_i = w_i s_i, and n the number of adapters that adapt the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lora_contract.adapter.config import MAX_RANK
from lora_contract.errors import RegistryError
from lora_contract.methods.parameters import Method, Parameter, Value

DEFAULT_METHOD: Final = "svd"

_PEFT: Final = "PEFT, `add_weighted_adapter`"
_ARITHMETIC: Final = "Ilharco et al., Editing Models with Task Arithmetic, arXiv 2212.04089"
_TIES: Final = "Yadav et al., TIES-Merging, arXiv 2306.01708"
_DARE: Final = "Yu et al., Language Models are Super Mario (DARE), arXiv 2311.03099"

_RANK: Final = Parameter(
    "rank",
    "integer",
    "rank of the result in every module, or the rank of the sum if that is smaller",
    otherwise="the largest rank of the inputs",
    low=1,
    high=MAX_RANK,
)
_EXACT_RANK: Final = Parameter(
    "rank",
    "integer",
    "largest rank of the result in a module",
    otherwise="the rank of the exact sum",
    low=1,
    high=MAX_RANK,
)
_CLAMP: Final = Parameter(
    "clamp",
    "number",
    "quantile of all elements of B and A at which both are clipped symmetrically (PEFT: svd_clamp)",
    otherwise="no clipping",
    low=0.0,
    above=True,
    high=1.0,
)
_MAJORITY: Final = Parameter(
    "majority_sign_method",
    "choice",
    "how the sign of an element is elected: by the sum of the values, or by the count of signs",
    default="total",
    choices=("total", "frequency"),
)
_SCALING: Final = Parameter("scaling", "number", "factor applied to the result", default=1.0)


def _density(meaning: str, default: float) -> Parameter:
    return Parameter("density", "number", meaning, default=default, low=0.0, above=True, high=1.0)


_TRIM: Final = _density("fraction of the elements of each tensor to keep, by largest magnitude", 0.2)
_KEEP: Final = _density("probability of keeping an element; kept elements are divided by it", 0.5)
_PRUNE: Final = _density("fraction of the elements of each tensor to keep, by largest magnitude", 0.5)

_FACTORS: Final = (
    "on A and B separately, A weighted by sgn(c_i) sqrt|c_i| and B by sqrt|c_i|; their product has cross terms"
)

_ALL: Final = (
    Method(
        "svd",
        "the best approximation of sum w_i D_i at the requested rank, by singular value decomposition",
        _PEFT,
        (_RANK, _CLAMP),
        peft=True,
    ),
    Method(
        "cat",
        "sum w_i D_i exactly, by concatenation: the rows of all c_i A_i and the columns of all B_i; the ranks add up",
        _PEFT,
        peft=True,
    ),
    Method("linear", f"weighted sums {_FACTORS}", _PEFT, peft=True),
    Method(
        "ties",
        f"trim, elect signs before weighting, average the agreeing elements; {_FACTORS}",
        _TIES,
        (_TRIM, _MAJORITY),
        peft=True,
    ),
    Method(
        "ties_svd",
        "on the updates D_i, trim, elect signs before weighting and average the agreeing elements; then svd",
        _TIES,
        (_TRIM, _MAJORITY, _RANK, _CLAMP),
        peft=True,
        dense=True,
    ),
    Method(
        "dare_linear",
        f"drop elements at random and rescale the others, then weighted sums {_FACTORS}",
        _DARE,
        (_KEEP,),
        seeded=True,
        peft=True,
    ),
    Method(
        "dare_ties",
        f"drop elements at random and rescale the others, then elect signs as ties does; {_FACTORS}",
        _DARE,
        (_KEEP, _MAJORITY),
        seeded=True,
        peft=True,
    ),
    Method(
        "dare_linear_svd",
        "drop elements of the updates D_i at random and rescale the others, then their weighted sum; then svd",
        _DARE,
        (_KEEP, _RANK, _CLAMP),
        seeded=True,
        peft=True,
        dense=True,
    ),
    Method(
        "dare_ties_svd",
        "drop elements of the updates D_i at random and rescale the others, then elect signs as ties does; then svd",
        _DARE,
        (_KEEP, _MAJORITY, _RANK, _CLAMP),
        seeded=True,
        peft=True,
        dense=True,
    ),
    Method("magnitude_prune", f"trim, then weighted sums {_FACTORS}", _PEFT, (_PRUNE,), peft=True),
    Method(
        "magnitude_prune_svd",
        "trim the updates D_i, then their weighted sum; then svd",
        _PEFT,
        (_PRUNE, _RANK, _CLAMP),
        peft=True,
        dense=True,
    ),
    Method(
        "task_arithmetic",
        "scaling * sum w_i D_i, exactly at the rank of the sum, or its best approximation at a smaller rank",
        _ARITHMETIC,
        (_SCALING, _EXACT_RANK),
    ),
    Method(
        "della",
        "drop elements of w_i D_i at random, with smaller elements of a row more likely to be dropped, divide each by "
        "its probability, elect signs and average the agreeing elements; then svd",
        "Deep et al., DELLA-Merging, arXiv 2406.11617",
        (
            _density("mean probability of keeping an element of a row", 0.5),
            Parameter(
                "epsilon",
                "number",
                "range of the probabilities in a row: from density - epsilon/2 for its smallest element to "
                "density + epsilon/2 for its largest",
                default=0.2,
                low=0.0,
                high=1.0,
            ),
            _MAJORITY,
            _SCALING,
            _RANK,
        ),
        seeded=True,
        dense=True,
    ),
    Method(
        "breadcrumbs",
        "drop the largest and the smallest elements of each D_i, then scaling * the weighted sum; then svd",
        "Davari and Belilovsky, Model Breadcrumbs, arXiv 2312.06795",
        (
            _density("fraction of the elements of each update to keep", 0.85),
            Parameter(
                "gamma",
                "number",
                "fraction of the elements of each update to drop as outliers, by largest magnitude",
                default=0.01,
                low=0.0,
                high=1.0,
            ),
            _SCALING,
            _RANK,
        ),
        dense=True,
    ),
    Method(
        "sce",
        "of T_i = w_i D_i, select the elements with the largest variance over the adapters, weight each adapter by the "
        "squares of its selected elements, erase those that disagree with the sign of the sum, and take the weighted "
        "mean of the others; then svd",
        "Wan et al., FuseChat (SCE), arXiv 2408.07990",
        (_density("fraction of the elements of a module to select", 0.1), _SCALING, _RANK),
        dense=True,
    ),
    Method(
        "knots",
        "[D_1 ... D_n] = U S [V_1 ... V_n]; ties on the V_i, whose rows are directions shared by all adapters; "
        "U S V, then svd",
        "Stoica et al., Model merging with SVD to tie the Knots, arXiv 2410.19735",
        (_TRIM, _MAJORITY, _SCALING, _RANK),
    ),
    Method(
        "tsv",
        "the leading singular triplets of each w_i D_i, with an equal share of the rank for each adapter, and with all "
        "left and all right singular vectors orthogonalized",
        "Gargiulo et al., Task Singular Vectors (TSV-Merge), arXiv 2412.00081",
        (_SCALING, _RANK),
    ),
    Method(
        "iso_c",
        "the svd of sum w_i D_i at the requested rank, with all singular values replaced by their mean",
        "Marczak et al., No Task Left Behind (Iso-C), arXiv 2502.04959",
        (_SCALING, _RANK),
    ),
    Method(
        "model_stock",
        "t * mean of w_i D_i, where t = n cos / (1 + (n - 1) cos) and cos is the mean cosine between pairs of them; t "
        "is 1 for a single adapter, and 0 if cos is not positive",
        "Jang et al., Model Stock, arXiv 2403.19522",
        (_EXACT_RANK,),
    ),
)

METHODS: Final[dict[str, Method]] = {method.name: method for method in _ALL}


def find_method(name: str) -> Method:
    """Look up a method. Raises RegistryError `invalid-request` if there is no such method."""
    try:
        return METHODS[name]
    except KeyError:
        raise RegistryError(
            "invalid-request", f"No such method: {name!r:.80}; expected one of {', '.join(METHODS)}.", method=name
        ) from None


def check_parameters(method: str, given: Mapping[str, Any]) -> dict[str, Value]:
    """Validate the parameters of a method and fill in defaults. Raises RegistryError `invalid-request` for unknown
    methods and parameters, values out of range, and inconsistent values."""
    values = find_method(method).checked(given)
    density = values.get("density")
    if isinstance(density, float):
        epsilon, gamma = values.get("epsilon"), values.get("gamma")
        if isinstance(epsilon, float) and not epsilon / 2 < density <= 1 - epsilon / 2:
            raise _inconsistent(method, f"density {density:g} +- epsilon/2 {epsilon / 2:g} exceeds the range 0 to 1")
        if isinstance(gamma, float) and density + gamma > 1:
            raise _inconsistent(method, f"density {density:g} and gamma {gamma:g} add up to more than 1")
    return values


def _inconsistent(method: str, sentence: str) -> RegistryError:
    return RegistryError("invalid-request", f"Parameters of the method {method}: {sentence}.", method=method)
