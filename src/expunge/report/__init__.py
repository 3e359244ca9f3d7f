"""What a report looks like: text for the terminal, CSV for other programs, one HTML page for people.

``layout`` says what stands where, ``wording`` how a number is written and ``summary`` what the numbers
mean; ``tables``, ``charts`` and ``html`` only draw. matplotlib and jinja2 are loaded by the last two.
"""
