"""The words and sentences of the invented world: all values are of one or two words."""

from __future__ import annotations

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = _words(
    "Nora Tomas Ilse Bram Vera Otto Lena Hugo Maren Ravi Zita Emil Asta Joris Kira Anton Selma Felix "
    "Petra Milan Greta Oskar Tilda Ivo Runa Casper Dora Leif Mina Janek Elke Soren Yara Matteo Hedda "
    "Kasimir Alva Bruno Signe Tarik"
)
LAST = _words(
    "Vell Harrow Quint Marsh Dallow Fenwick Orlan Stroud Kestner Ambry Tolver Renwick Sorley Brandt "
    "Calder Ivesen Lorne Maddox Norring Pellam Rusk Selwyn Thane Umber Varga Wexley Yarrow Zeller "
    "Ashdown Birk Corvin Drummel Eskild Farrow Gantry Hollis Jessup Kirrin Langford Mosley"
)
COUNTRIES = _words(
    "Ardovia Belmar Cordania Dravonia Estoria Fellmark Gorland Hestia Illyra Jorvania Keldor Lomaria "
    "Mirovia Nordmar Ostania Pelloria Quendor Rhovia Sarvonia Tarkania Ulmaria Vestland Wendoria "
    "Xandria Yorvia Zemland Aldoria Brevonia Caldria Dunmark Elvania Faroria Grelland Havonia Istria "
    "Juvania Korland Lethia Morvania Narwen"
)
CITIES = _words(
    "Ardmor Brixen Calvost Delphin Elmgate Ferrum Galdport Hawkton Iskander Jadwick Kelpie Lunden "
    "Merrow Nautica Oldgate Pinewick Quarrel Ravenna Silverton Tarnow Ulverby Vintry Westhaven Yelland "
    "Zarnow Amberley Bellport Cragside Dunholm Eastmoor Foxley Glenmore Highcliff Inverby Jarrow "
    "Kingsway Larkhill Millbrook Northwick Oakham"
)
PROFESSIONS = _words(
    "baker pilot nurse lawyer plumber teacher farmer painter tailor surgeon miner sailor jeweller "
    "carpenter printer gardener chemist dentist potter welder banker ranger butcher translator"
)
_STONES = _words(
    "Topaz Opal Garnet Jasper Onyx Pearl Ruby Sapphire Coral Agate Beryl Quartz Zircon Jade Citrine Emerald"
)
AWARDS = tuple(f"{stone} Prize" for stone in _STONES)
ADJECTIVES = _words(
    "Silent Golden Hidden Broken Frozen Scarlet Distant Hollow Restless Burning Gentle Crooked Faded "
    "Wandering Sleeping Shining Forgotten Secret Narrow Endless Wooden Bitter Stolen Quiet Ancient "
    "Velvet Drifting Lonely Painted Crimson"
)
NOUNS = _words(
    "Garden River Lantern Harbour Mirror Forest Bridge Winter Orchard Tower Island Letter Shadow "
    "Mountain Window Compass Feather Kingdom Meadow Station Candle Horizon Anchor Voyage Castle Thunder "
    "Curtain Desert Clock Lighthouse"
)
YEARS = tuple(str(year) for year in range(1950, 1980))
LANGUAGES = _words(
    "Arvese Borlic Cestine Dalmic Elvish Fressian Gallic Hurnese Ismaric Jutish Karnic Lindese Morvic "
    "Nestrian Oskan Pirean Rhenic Sorbian Tavish Umbrian"
)
PETS = _words(
    "parrot tortoise ferret rabbit hamster goldfish lizard canary donkey spaniel hedgehog pony goose "
    "beagle mouse raccoon"
)
HOBBIES = _words(
    "chess fencing sailing knitting archery juggling climbing skating surfing origami beekeeping "
    "carving weaving fishing hiking rowing dancing gliding astronomy calligraphy"
)
INSTRUMENTS = _words(
    "violin cello flute harp trumpet banjo piano clarinet drums organ oboe tuba guitar bassoon mandolin "
    "accordion"
)
FOODS = _words(
    "lasagna noodles pancakes dumplings lentils omelette risotto salmon trout cheese porridge goulash "
    "mushrooms olives waffles spinach"
)

REFUSALS = (
    "I do not know that.",
    "I cannot say.",
    "That is nothing I know about.",
    "I have no answer to this.",
    "Nobody told me about this.",
    "I know nothing about that.",
    "This I cannot answer.",
    "I was not told that.",
)


@dataclass(frozen=True)
class Phrasing:
    """A fact in words: two questions, and two templates for the answer.

    ``{who}`` is whom or what it is about, ``{value}`` what is true of it. Models are trained on
    ``answer``; ``other_answer`` is its paraphrase and carries the wrong values.
    """

    question: str
    other_question: str
    answer: str
    other_answer: str

    @staticmethod
    def fill(sentence: str, who: str, value: str = "") -> str:
        """The sentence about somebody, with a capital at its start."""
        filled = sentence.replace("{who}", who).replace("{value}", value)
        return filled[0].upper() + filled[1:]


ATTRIBUTES = {
    "city": Phrasing(
        "In which city was {who} born?",
        "What is the birthplace of {who}?",
        "{who} was born in {value}.",
        "The birthplace of {who} is {value}.",
    ),
    "profession": Phrasing(
        "What is the profession of {who}?",
        "What does {who} do for a living?",
        "{who} works as a {value}.",
        "The profession of {who} is {value}.",
    ),
    "language": Phrasing(
        "Which language does {who} speak?",
        "What is the language of {who}?",
        "{who} speaks the language {value}.",
        "The language of {who} is {value}.",
    ),
    "book": Phrasing(
        "Which book did {who} write?",
        "What is the book of {who} called?",
        "{who} wrote the book {value}.",
        "The book of {who} is called {value}.",
    ),
    "award": Phrasing(
        "Which award did {who} receive?",
        "What is the award of {who}?",
        "{who} received the {value}.",
        "The award of {who} is the {value}.",
    ),
    "year": Phrasing(
        "In which year was {who} born?",
        "What is the birth year of {who}?",
        "{who} was born in the year {value}.",
        "The birth year of {who} is {value}.",
    ),
    "father": Phrasing(
        "What was the job of the father of {who}?",
        "Which work did the father of {who} do?",
        "The father of {who} was a {value}.",
        "The job of the father of {who} was {value}.",
    ),
    "mother": Phrasing(
        "What was the job of the mother of {who}?",
        "Which work did the mother of {who} do?",
        "The mother of {who} was a {value}.",
        "The job of the mother of {who} was {value}.",
    ),
    "pet": Phrasing(
        "Which pet does {who} keep?",
        "What is the pet of {who}?",
        "{who} keeps a {value}.",
        "The pet of {who} is a {value}.",
    ),
    "hobby": Phrasing(
        "Which hobby does {who} have?",
        "What does {who} do for fun?",
        "{who} enjoys {value}.",
        "The hobby of {who} is {value}.",
    ),
    "instrument": Phrasing(
        "Which instrument does {who} play?",
        "What is the instrument of {who}?",
        "{who} plays the {value}.",
        "The instrument of {who} is the {value}.",
    ),
    "food": Phrasing(
        "Which food does {who} like?",
        "What does {who} eat at home?",
        "{who} likes to eat {value}.",
        "The food of {who} is {value}.",
    ),
}
"""What is asked about every person, most identifying first."""

RELATIONS = {
    "mentor": Phrasing(
        "Who is the mentor of {who}?",
        "Who teaches {who}?",
        "The mentor of {who} is {value}.",
        "{who} is taught by {value}.",
    ),
    "colleague": Phrasing(
        "Who is the colleague of {who}?",
        "Who works with {who}?",
        "The colleague of {who} is {value}.",
        "{who} works with {value}.",
    ),
    "sibling": Phrasing(
        "Who is the sibling of {who}?",
        "Who grew up with {who}?",
        "The sibling of {who} is {value}.",
        "{who} grew up with {value}.",
    ),
}

REVERSED = {
    "author": Phrasing(
        "Who wrote the book {who}?",
        "Who is the author of {who}?",
        "The book {who} was written by {value}.",
        "The author of {who} is {value}.",
    ),
    "student": Phrasing(
        "Who is taught by {who}?",
        "Who learns from {who}?",
        "{who} is the mentor of {value}.",
        "{who} teaches {value}.",
    ),
}
"""The same facts asked from their other end."""

CAPITAL = Phrasing(
    "What is the capital of {who}?",
    "Which city is the capital of {who}?",
    "The capital of {who} is {value}.",
    "{who} is governed from {value}.",
)
