# expect: pass
# cases: 3
from __future__ import annotations
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import ClassVar, Dict, Generic, List, NamedTuple, Optional, Protocol, TypeVar, Union, get_type_hints
T = TypeVar("T")
class Color(Enum):
    RED = auto()
class Level(IntEnum):
    LOW = 1
class Pair(NamedTuple):
    x: int
    y: Optional[Pair] = None
@dataclass(order=True, frozen=True)
class Point:
    count: ClassVar[int] = 0
    x: int
    rest: List[int] = field(default_factory=list, compare=False)
class Named(Protocol):
    name: str
class Stack(Generic[T]):
    def top(self, items: Dict[str, T]) -> Union[T, None]:
        return items.get("top")
ok = Point(1) < Point(2) and Pair(1).y is None and Color.RED.value == Level.LOW
ok = ok and get_type_hints(Point)["x"] is int and Stack[int]().top({"top": 5}) == 5
print("contained" if ok else "lost")
