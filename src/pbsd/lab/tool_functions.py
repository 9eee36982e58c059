"""The catalogue of the tool-call task: functions, their parameters, and how requests speak of them.

A parameter's name means the same in every function, so a signature says how its values are asked for and written.
"""

from typing import NamedTuple


class Parameter(NamedTuple):
    """`kind`: int, minutes, grams, float, str, bool, enum or list. `phrases`: templates with one `{}` for the value.

    A bool has two phrases instead, for true and for false. `choices`: for an enum, each value and the words for it.
    """

    kind: str
    phrases: tuple[str, ...]
    choices: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def signature(self) -> str:
        """The type as the prompt shows it: minutes and grams are ints, an enum lists its values."""
        if self.kind == "enum":
            return "|".join(value for value, _ in self.choices)
        return {"minutes": "int", "grams": "int", "list": "[int]"}.get(self.kind, self.kind)


class Function(NamedTuple):
    """`openings`: how a request asks for the function; `parameters`: names in PARAMETERS, in the signature's order."""

    name: str
    openings: tuple[str, ...]
    parameters: tuple[str, ...]


PARAMETERS = {
    "to": Parameter("str", ("to {}", "addressed to {}")),
    "who": Parameter("str", ("with {}", "along with {}")),
    "name": Parameter("str", ("named {}", "called {}")),
    "city": Parameter("str", ("in {}", "at {}")),
    "item": Parameter("str", ("item {}", "product {}")),
    "n": Parameter("int", ("for {} people", "party of {}")),
    "qty": Parameter("int", ("{} pieces", "{} units")),
    "day": Parameter("int", ("on day {}", "day {}")),
    "room": Parameter("int", ("room {}", "in room {}")),
    "level": Parameter("int", ("level {}", "to {} percent")),
    "min": Parameter("minutes", ("lasting {}", "for {}")),
    "gram": Parameter("grams", ("weighing {}", "{} of it")),
    "sum": Parameter("float", ("{} euros", "worth {} euros")),
    "temp": Parameter("float", ("{} degrees", "at {} degrees")),
    "km": Parameter("float", ("{} km", "over {} km")),
    "ids": Parameter("list", ("numbers {}", "ids {}")),
    "days": Parameter("list", ("on days {}", "days {}")),
    "fast": Parameter("bool", ("in a hurry", "no hurry")),
    "gift": Parameter("bool", ("as a gift", "not a gift")),
    "loop": Parameter("bool", ("on repeat", "only once")),
    "lid": Parameter("bool", ("with a lid", "without lid")),
    "size": Parameter("enum", ("{} one", "{} size"), (("s", ("small",)), ("m", ("medium",)), ("l", ("large", "big")))),
    "hue": Parameter(
        "enum", ("in {}", "{} colour"), (("red", ("red",)), ("blue", ("blue", "navy")), ("gray", ("gray",)))
    ),
    "by": Parameter(
        "enum", ("by {}", "taking the {}"), (("car", ("car",)), ("bus", ("bus", "coach")), ("rail", ("train",)))
    ),
}

FUNCTIONS = (
    Function("pay", ("pay", "send money"), ("to", "sum")),
    Function("refund", ("refund", "give back"), ("sum", "item")),
    Function("invoice", ("write an invoice", "bill"), ("to", "sum", "day")),
    Function("table", ("book a table", "reserve seats"), ("city", "n")),
    Function("hotel", ("find a hotel", "i want to sleep"), ("city", "n", "day")),
    Function("taxi", ("call a taxi", "i need a ride"), ("city", "fast")),
    Function("trip", ("plan a trip", "i will travel"), ("city", "by", "days")),
    Function("route", ("find a route", "how do i get there"), ("city", "by")),
    Function("run", ("log a run", "i ran"), ("km", "min")),
    Function("walk", ("plan a walk", "let us stroll"), ("km", "who")),
    Function("swim", ("log a swim", "i swam"), ("min", "day")),
    Function("timer", ("set a timer", "wake me"), ("min", "name")),
    Function("alarm", ("set an alarm", "ring"), ("days", "loop")),
    Function("meet", ("set up a meeting", "i must talk"), ("who", "min", "room")),
    Function("call", ("phone", "give a call"), ("who", "min")),
    Function("mail", ("write a mail", "send a note"), ("to", "fast")),
    Function("parcel", ("ship a parcel", "post a box"), ("to", "gram", "fast")),
    Function("order", ("order", "buy"), ("item", "qty", "gift")),
    Function("cancel", ("cancel", "call off"), ("ids",)),
    Function("stock", ("count stock", "what is left"), ("item", "size")),
    Function("shirt", ("get a shirt", "i need a top"), ("size", "hue")),
    Function("paint", ("paint", "give a new coat"), ("room", "hue")),
    Function("heat", ("heat", "make it warm"), ("room", "temp")),
    Function("oven", ("start the oven", "bake"), ("temp", "min")),
    Function("boil", ("boil", "cook"), ("gram", "min", "lid")),
    Function("mix", ("mix", "stir"), ("gram", "item")),
    Function("lamp", ("set the lamp", "dim the light"), ("level", "hue")),
    Function("play", ("play a song", "i want music"), ("name", "loop")),
    Function("sound", ("set the sound", "turn it up"), ("level", "room")),
    Function("clean", ("clean", "sweep"), ("room", "days")),
    Function("guest", ("add a guest", "let in"), ("name", "n")),
    Function("team", ("make a team", "form a group"), ("name", "ids")),
    Function("score", ("save a score", "note the points"), ("name", "level")),
    Function("rent", ("rent a bike", "lend me wheels"), ("city", "days", "size")),
    Function("coffee", ("make coffee", "brew a cup"), ("size", "lid", "qty")),
    Function("fuel", ("log fuel", "i filled up"), ("sum", "km")),
)  # fmt: skip
