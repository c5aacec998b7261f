from results.tables.pages import main

main()
