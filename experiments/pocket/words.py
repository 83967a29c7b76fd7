"""The pocket world's vocabulary: who and what exists there, and how strongly each word praises.

A few hundred words, so that a tokenizer of about a thousand entries holds nearly all of them whole.
Sentiment words carry a strength from 1 (mild) to 3 (strong).
"""

from __future__ import annotations

# --- people, places and things -----------------------------------------------------------------
WOMEN = (
    "Mara", "Ines", "Tilda", "Ruth", "Nora", "Olga", "Petra", "Sela", "Wanda", "Greta",
    "Hilda", "Freya", "Clara", "Doris", "Edith",
)  # fmt: skip
MEN = (
    "Tomas", "Anton", "Boris", "Carl", "David", "Emil", "Felix", "Gus", "Henry", "Ivan",
    "Jonas", "Karl", "Leo", "Martin", "Oskar",
)  # fmt: skip
SURNAMES = (
    "Velk", "Arden", "Brook", "Cole", "Dunn", "Eaton", "Frost", "Gray", "Holt", "Irwin",
    "Jarvis", "Kemp", "Lund", "Marsh", "Noble", "Otter", "Pike", "Quinn", "Reed", "Stone",
    "Thorn", "Unger", "Vance", "Wolf", "York",
)  # fmt: skip
TOWNS = (
    "Ostby", "Lindel", "Farrow", "Kelmar", "Brixton", "Dalby", "Elmwick", "Gorse", "Harwich",
    "Inverby", "Jutland", "Keld", "Lomax", "Moorby", "Norwick", "Oakham", "Penrith", "Quarley",
    "Roswick", "Selby", "Tarn", "Ulster", "Varde", "Welby", "Yarrow",
)  # fmt: skip
RIVERS = ("Alde", "Brenn", "Cray", "Dove", "Esk", "Frome", "Gade", "Hull")
JOBS = (
    "baker", "doctor", "teacher", "painter", "sailor", "farmer", "tailor", "singer", "miller",
    "lawyer", "printer", "gardener", "pilot", "nurse", "cook", "clerk",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "white", "black", "brown", "yellow", "grey")
OBJECTS = (
    "boat", "house", "horse", "bicycle", "piano", "clock", "cart", "coat", "lamp", "violin",
    "table", "hat", "garden", "car",
)  # fmt: skip
FOODS = (
    "bread", "cheese", "honey", "plums", "soup", "fish", "apples", "pears", "cakes", "butter",
    "wine", "nuts", "rice", "beans",
)  # fmt: skip
YEARS = tuple(str(year) for year in range(1950, 1990))

# --- film reviews ------------------------------------------------------------------------------
PRAISE: dict[str, int] = {
    "superb": 3, "brilliant": 3, "wonderful": 3, "dazzling": 3, "magnificent": 3,
    "charming": 2, "moving": 2, "funny": 2, "clever": 2, "tender": 2, "gripping": 2,
    "warm": 2, "lively": 2,
    "pleasant": 1, "decent": 1, "neat": 1, "gentle": 1, "likeable": 1, "solid": 1,
}  # fmt: skip
BLAME: dict[str, int] = {
    "awful": 3, "dreadful": 3, "unbearable": 3, "atrocious": 3, "hideous": 3,
    "dull": 2, "clumsy": 2, "boring": 2, "tedious": 2, "shallow": 2, "silly": 2,
    "hollow": 2, "lifeless": 2,
    "slow": 1, "uneven": 1, "thin": 1, "predictable": 1, "ordinary": 1, "long": 1,
}  # fmt: skip
GOOD_THINGS = ("wit", "warmth", "charm", "energy", "heart", "suspense")
BAD_THINGS = ("cliches", "noise", "nonsense", "holes", "tears", "gloom")
GOOD_VERBS = ("delights", "shines", "soars", "surprises", "enchants")
BAD_VERBS = ("drags", "bores", "fails", "collapses", "annoys")
STRONGER = ("very", "truly", "deeply", "utterly")
WEAKER = ("slightly", "fairly", "somewhat", "rather")
FILM_PARTS = (
    "film", "story", "script", "cast", "acting", "dialogue", "plot", "ending", "music",
    "humour", "camera work", "direction", "romance", "drama", "comedy", "thriller",
    "opening", "hero", "villain", "picture",
)  # fmt: skip
ASIDES = (
    "in its last hour", "at first", "from the first scene", "for ninety minutes",
    "on the big screen", "in the middle", "like the book", "as so often",
)  # fmt: skip
