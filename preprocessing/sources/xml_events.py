"""A stream of XML as start and end events, from a source that is not trusted.

The parser is Python's own, expat in C. Before it sees a byte, everything up to the first element goes through a second
expat that refuses the declaration of any entity: entities can be declared nowhere else, so none can grow or fetch
anything. A document type declaration itself is accepted, because every file of NLM has one; it is never fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedIOBase
from xml.etree.ElementTree import Element, XMLPullParser
from xml.parsers import expat

# PubMed's largest records, with thousands of authors, have a few MB.
MAX_RECORD_BYTES = 16 << 20
# expat reads a token that is cut by the end of a block again with the next one: large blocks bound that.
_BLOCK_BYTES = 256 << 10


class ForbiddenXmlError(Exception):
    """The document type declares an entity, or one record is larger than any real one."""


class EncodingError(Exception):
    """The file declares an encoding that the parser does not know, or cannot read."""


class XmlEvents:
    """Iterates over ("start" or "end", element) pairs of a stream.

    Raises:
        xml.etree.ElementTree.ParseError: the XML is broken; what stood before has been given.
        ForbiddenXmlError, EncodingError: see there.
    """

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream, self._prolog, self._bytes = stream, _PrologGuard(), 0

    def end_record(self) -> None:
        """The caller has dropped what it was given so far; at most 16 MiB may follow until it does so again."""
        self._bytes = 0

    def __iter__(self) -> Iterator[tuple[str, Element]]:
        parser = XMLPullParser(events=("start", "end"))
        # `read` would lose what it has when it meets damage; `read1` returns it first.
        while block := self._stream.read1(_BLOCK_BYTES):
            self._bytes += len(block)
            if self._bytes > MAX_RECORD_BYTES:
                raise ForbiddenXmlError(f"more than {MAX_RECORD_BYTES} bytes without the end of a record")
            # Of an encoding the parsers say LookupError, or ValueError where a character has several bytes.
            try:
                self._prolog.check(block)
                parser.feed(block)
            except (LookupError, ValueError) as error:
                raise EncodingError(error) from None
            yield from parser.read_events()
        parser.close()
        yield from parser.read_events()


class _RootReached(Exception):
    """The first element begins: no entity can be declared any more."""


class _PrologGuard:
    """Reads what stands before the first element."""

    def __init__(self) -> None:
        self._parser: expat.XMLParserType | None = expat.ParserCreate()
        self._parser.EntityDeclHandler = self._refuse_entity
        self._parser.StartElementHandler = self._reach_root

    def check(self, block: bytes) -> None:
        """Check the next bytes of the file."""
        if self._parser is None:
            return
        try:
            self._parser.Parse(block)
        except _RootReached:
            self._parser = None
        except expat.ExpatError:
            pass  # the parser itself meets it next, and says where

    def _refuse_entity(self, name: str, *_: object) -> None:
        raise ForbiddenXmlError(f"the declaration of entity {name!r} is refused")

    def _reach_root(self, name: str, _: dict[str, str]) -> None:
        raise _RootReached
