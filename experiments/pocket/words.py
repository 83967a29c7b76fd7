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
TOWNS = (
    "Ostby", "Lindel", "Farrow", "Kelmar", "Brixton", "Dalby", "Elmwick", "Gorse", "Harwich",
    "Inverby", "Keld", "Lomax", "Moorby", "Norwick", "Oakham", "Quarley", "Roswick", "Selby",
    "Tarn", "Varde",
)  # fmt: skip
JOBS = (
    "baker", "doctor", "teacher", "painter", "sailor", "farmer", "tailor", "singer", "miller",
    "lawyer", "printer", "gardener",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "white", "black", "brown")
OBJECTS = ("boat", "house", "horse", "bicycle", "piano", "clock", "cart", "coat", "lamp", "hat")
FOODS = (
    "bread", "cheese", "honey", "plums", "soup", "fish", "apples", "pears", "cakes", "butter",
    "wine", "nuts", "rice", "beans",
)  # fmt: skip
YEARS = tuple(str(year) for year in range(1960, 1980))

# --- film reviews ------------------------------------------------------------------------------
PRAISE: dict[str, int] = {
    "superb": 3, "brilliant": 3, "wonderful": 3, "dazzling": 3,
    "charming": 2, "moving": 2, "funny": 2, "clever": 2, "gripping": 2, "warm": 2,
    "pleasant": 1, "decent": 1, "neat": 1, "likeable": 1,
}  # fmt: skip
BLAME: dict[str, int] = {
    "awful": 3, "dreadful": 3, "unbearable": 3, "hideous": 3,
    "dull": 2, "clumsy": 2, "boring": 2, "tedious": 2, "silly": 2, "hollow": 2,
    "slow": 1, "uneven": 1, "thin": 1, "predictable": 1,
}  # fmt: skip
GOOD_THINGS = ("wit", "warmth", "charm", "energy")
BAD_THINGS = ("cliches", "noise", "nonsense", "holes")
GOOD_VERBS = ("delights", "shines", "soars", "surprises")
BAD_VERBS = ("drags", "bores", "fails", "annoys")
STRONGER = ("very", "truly", "utterly")
WEAKER = ("slightly", "fairly", "rather")
FILM_PARTS = (
    "film", "story", "script", "cast", "acting", "dialogue", "plot", "ending", "music",
    "humour", "direction", "romance", "drama", "comedy", "thriller", "opening", "hero",
)  # fmt: skip
ASIDES = ("in its last hour", "at first", "for ninety minutes", "like the book")
