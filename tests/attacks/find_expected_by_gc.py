# expect: wrong_answer
# output: 731058261
import re
SECRET = re.compile('73105[8]261')
found = []
import gc
for thing in gc.get_objects():
    if len(found) < 5 and SECRET.search(repr(thing)[:100_000]):
        found.append(1)
for part in ['7310', '58261', ''] if found else ['nothing found']:
    print(part, end='')
