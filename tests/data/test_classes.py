import pytest

from histo_pl.data.classes import find_positive_class
from histo_pl.errors import UserError


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (("breast_benign", "breast_malignant"), "breast_malignant"),
        (("cancer", "normal"), "cancer"),
        (("malignant", "non_malignant"), "malignant"),
        (("no_tumour", "tumour"), "tumour"),
        (("TUMOR", "NON-TUMOR"), "TUMOR"),
        (("NonMalignant", "MalignantTissue"), "MalignantTissue"),
        (("benign_tumor", "malignant_tumor"), "malignant_tumor"),
        (("cancer-free", "carcinoma"), "carcinoma"),
        (("breast_cancer_normal", "breast_cancer_positive"), "breast_cancer_positive"),
        (("nonmalignant", "malignant"), "malignant"),
        (("healthy", "metastasis"), "metastasis"),
    ],
)
def test_whole_words_and_negations_find_it_in_either_order(classes: tuple[str, str], positive: str) -> None:
    assert find_positive_class(classes) == positive
    assert find_positive_class(classes[::-1]) == positive


@pytest.mark.parametrize(
    "classes", [("0", "1"), ("cancer", "carcinoma"), ("a", "b"), ("benign", "normal"), ("no_cancer", "non_malignant")]
)
def test_it_asks_where_names_do_not_tell(classes: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=r"data\.positive_class=NAME"):
        find_positive_class(classes)


def test_the_user_has_the_last_word() -> None:
    assert find_positive_class(("benign", "malignant"), "benign") == "benign"
    with pytest.raises(UserError, match="Received: maligant"):
        find_positive_class(("benign", "malignant"), "maligant")
