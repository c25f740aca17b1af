from upstream.errors import no_such


def test_what_does_not_exist_is_answered_with_the_nearest():
    known = ["starhubert", "dphubert"]
    assert (
        str(no_such("-u starhuberd", "starhuberd", known)) == "-u starhuberd does not exist; did you mean starhubert?"
    )
    assert str(no_such("-u xyz", "xyz", known)) == "-u xyz does not exist"
