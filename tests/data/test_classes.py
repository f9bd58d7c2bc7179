import pytest

from histo_pl.data.classes import ClassChoice, find_positive_class
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
    assert ClassChoice("benign").resolve(("benign", "malignant")).is_positive == {"benign": True, "malignant": False}
    with pytest.raises(UserError, match="Received: maligant"):
        ClassChoice("maligant").resolve(("benign", "malignant"))


BACH = ("Benign", "InSitu", "Invasive", "Normal")


def test_several_folders_make_a_class() -> None:
    classes = ClassChoice(["InSitu", "Invasive"]).resolve(BACH)
    assert (classes.positive, classes.negative) == ("InSitu, Invasive", "Benign, Normal")
    assert [classes.name_of(name) for name in BACH] == [classes.negative, classes.positive] * 1 + [
        classes.positive,
        classes.negative,
    ]
    some = ClassChoice("Invasive", ["Normal"], ["Benign", "InSitu"]).resolve(BACH)
    assert some.is_positive == {"Invasive": True, "Normal": False}
    assert ClassChoice(1).resolve(("0", "1")).positive == "1"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (ClassChoice(), "There are 4 class folders"),
        (
            ClassChoice("Invasive", ["Normal"]),
            r"in data.negative_class=\[...\] or data.ignore_class.*Benign, InSitu",
        ),
        (ClassChoice("Invasive", ["Invasive"]), "named twice.*Invasive"),
        (ClassChoice(list(BACH)), "no benign one"),
        (ClassChoice("Invasive", None, ["Benign", "InSitu", "Normal"]), "two classes with images.*Received: Invasive"),
        (ClassChoice("Invasive", ["Norml"]), "data.negative_class names no class folder.*Norml"),
    ],
)
def test_a_folder_in_no_list_or_in_two_is_refused(choice: ClassChoice, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choice.resolve(BACH)
